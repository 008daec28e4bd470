"""The service on one machine: state folder, embedded PostgreSQL, coordinator, workers, dashboard, demo.

May not live here: calls to Kubernetes.
"""
