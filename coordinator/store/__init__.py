"""Tables, migrations and queries. May not live here: rules about states, HTTP."""
