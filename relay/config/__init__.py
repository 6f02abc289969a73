"""The configuration: models, loading, faults with their lines."""

from relay.config.config import Config
from relay.config.models import Admin, Auth, Egress, Limits, Listener, Log, Policy, Profile, Protocol, Quic, Rule

__all__ = [
    "Admin",
    "Auth",
    "Config",
    "Egress",
    "Limits",
    "Listener",
    "Log",
    "Policy",
    "Profile",
    "Protocol",
    "Quic",
    "Rule",
]
