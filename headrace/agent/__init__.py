"""The host daemon: watches devices and desired state, plugs ports, reconciles, reports."""
