"""The command line: arguments become a specification, a call, and text."""
