"""Every way in which sd35 says no.

    Sd35Error
    ├── RequestError          a flag or a number outside its range
    ├── RefusedError          something that we will not read or draw
    │   ├── CheckpointError   files that are not the model they claim to be
    │   ├── PromptError       a prompt that we will not draw
    │   ├── SourceError       a picture to start from that we will not read
    │   └── AccessError       a caller without a valid key
    │       └── ScopeError    a valid key that may not do this
    └── UnavailableError      something around us that is not there
        ├── MissingError      a path or a checkpoint
        ├── OutputError       a place to write, or room on the disk
        ├── NetworkError      a server that can't be reached, or won't give what we ask for
        ├── LibraryError      a package that an option needs
        └── DeviceError       a device, or room on it

Each message is one sentence or two: what is wrong, why, and what to do about it. `code` is the stable
word for programs; the command line and the server each map the tree to their own numbers, once.
"""


class Sd35Error(Exception):
    """Base of all errors that sd35 raises on purpose; `str(error)` is meant for people."""

    code = "error"


class RequestError(Sd35Error):
    """A flag or a number is outside the range in which it means something."""

    code = "invalid_request"


class RefusedError(Sd35Error):
    """The input is understood, and refused."""

    code = "refused"


class CheckpointError(RefusedError):
    """Checkpoint files are incomplete, damaged, or not what they claim to be."""

    code = "invalid_checkpoint"


class PromptError(RefusedError):
    """The prompt will not be drawn."""

    code = "prompt_refused"


class SourceError(RefusedError):
    """The picture to start from is not one, or costs too much to read."""

    code = "invalid_image"


class AccessError(RefusedError):
    """The caller shows no valid key where one is needed."""

    code = "invalid_api_key"


class ScopeError(AccessError):
    """The caller's key is valid, and does not allow what it asks for."""

    code = "missing_scope"


class UnavailableError(Sd35Error):
    """Something around us is missing: a path, room, a library, a device."""

    code = "unavailable"


class MissingError(UnavailableError):
    """A path or a named checkpoint does not exist."""

    code = "not_found"


class OutputError(UnavailableError):
    """The output can't be written."""

    code = "unwritable_output"


class NetworkError(UnavailableError):
    """A server can't be reached, or won't give what we ask for."""

    code = "network_unavailable"


class LibraryError(UnavailableError):
    """An optional package is not installed."""

    code = "missing_library"


class DeviceError(UnavailableError):
    """The device is not there, can't do what is asked, or has no room left."""

    code = "device_unavailable"
