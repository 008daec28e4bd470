"""`foldwise report`: a study's figures, tables and numbers, from what a coordinator tells over REST."""
