"""Who calls, on a development server without Keystone: whoever the caller says, by default an administrator.

A WSGI filter that trusts X-User-Id, X-Project-Id and X-Roles. Never put it in front of anything real.
"""

from __future__ import annotations

from typing import Any

import webob.dec
from neutron_lib.context import Context
from oslo_middleware.base import ConfigurableMiddleware

DEFAULTS = {
    "HTTP_X_USER_ID": "dev",
    "HTTP_X_PROJECT_ID": "dev",
    "HTTP_X_IDENTITY_STATUS": "Confirmed",
    # The role service: Nova's part, which alone may set binding:profile.
    "HTTP_X_ROLES": "admin,manager,member,reader,service",
}


class DevContext(ConfigurableMiddleware):
    """Sets ``neutron.context``, as keystonecontext does for real."""

    @webob.dec.wsgify
    def __call__(self, request: Any) -> Any:
        for header, value in DEFAULTS.items():
            request.environ.setdefault(header, value)
        request.environ["neutron.context"] = Context.from_environ(request.environ)
        return self.application
