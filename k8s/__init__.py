"""The only code that calls the Kubernetes API; `cli` also runs kubectl.

Not allowed here: rules about studies, and anything that needs a database or torch.
"""
