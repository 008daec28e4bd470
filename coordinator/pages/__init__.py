"""The study page: HTML made here, from the same tables as all else; no build step, no other host.

May not live here: SQL, rules about states. Its sign-in is a session's cookie, which opens pages alone: the REST
interface takes tokens only, so no page of another site can call it in somebody's name.
"""
