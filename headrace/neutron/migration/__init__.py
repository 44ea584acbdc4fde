"""Headrace's branch of Neutron's schema: ``neutron-db-manage --subproject headrace upgrade heads``."""
