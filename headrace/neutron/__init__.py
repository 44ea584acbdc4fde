"""The OpenStack Networking (Neutron) plug-in: the only code that imports neutron or oslo.

Neutron's database is the only source of desired state. API processes mark what they changed in the same
transaction and never call the network; one worker carries it to the controller, and brings back what hosts say.
"""
