"""The study page: HTML rendered from the coordinator's tables, without a build step or files from other hosts.

Not allowed here: SQL, rules about states. Users sign in with a session cookie that opens only pages; the REST
interface accepts only tokens, so a page of another site cannot call it with a user's cookie.
"""
