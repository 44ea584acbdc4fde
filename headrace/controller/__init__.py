"""The service that keeps desired state and serves it to agents and plug-ins."""
