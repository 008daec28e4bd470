"""Authentication, scopes, rate limits, browser sessions, and errors as problem responses.

May not live here: rules about studies, trials or folds; HTML; an error page is rendered
by a function that the application passes in.
"""
