"""Every error that Headrace raises on purpose.

    HeadraceError
    +-- InvalidInput        the caller must change what they sent (API body, YAML, configuration, packet text)
    |   +-- UnknownField    a key nobody knows; names the nearest known one
    |   +-- Conflict        the object contradicts another one, or is older than what is stored
    |   `-- NotFound        the object named does not exist
    +-- NotSupported        this host, kernel or device cannot do what is asked; the operator must change one of them
    +-- Denied              the identity may not do this
    +-- Unavailable         a peer (controller, kernel, store) did not answer; trying again may help
    |   `-- StoreFull       it answers, and has no room to write; what it has can be read
    `-- DatapathError       the kernel refused a program or a table write; a bug or a full table

A message names the object and the cure. Raise low, catch once.
"""


class HeadraceError(Exception):
    """Base of all; ``str(error)`` is fit to show to an operator."""


class InvalidInput(HeadraceError):
    """What was sent cannot be accepted as it is."""


class UnknownField(InvalidInput):
    """A key that no type defines."""


class Conflict(InvalidInput):
    """The object contradicts another one, or is older than what is stored."""


class NotFound(InvalidInput):
    """The object named does not exist."""


class NotSupported(HeadraceError):
    """This host, kernel or device cannot honour the request."""


class Denied(HeadraceError):
    """The identity may not do this."""


class Unavailable(HeadraceError):
    """A peer did not answer; trying again may help."""


class StoreFull(Unavailable):
    """Nothing can be written until there is room again; reading goes on."""


class DatapathError(HeadraceError):
    """The kernel refused a program or a table write."""
