"""Tables, migrations and queries. Not allowed here: rules about states, HTTP."""
