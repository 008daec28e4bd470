"""The only code that talks to the Kubernetes API.

May not live here: rules about studies, anything that needs a database or torch.
"""
