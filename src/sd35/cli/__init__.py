"""The `sd35` command: each verb parses, calls one function and prints."""
