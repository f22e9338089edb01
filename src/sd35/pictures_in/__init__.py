"""Pictures that come from outside: a stranger's bytes become a `SourcePicture`, in a child process."""
