"""`foldwise study ...`: running studies (`run`) and changing them (`edit`)."""
