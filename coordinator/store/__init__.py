"""Tables, migrations and read queries. May not live here: rules about states, HTTP."""
