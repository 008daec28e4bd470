"""The service on one machine: state folder, embedded PostgreSQL, coordinator, workers, dashboard, demo.

Not allowed here: calls to Kubernetes.
"""
