"""Authentication, scopes, rate limits, browser sessions, and errors as problem responses.

Not allowed here: rules about studies, trials or folds, and HTML. The application passes in the function that
renders an error page.
"""
