"""Deciding about tunnels: the question, the answer, the hook that gives it."""

from relay.policy.decision import Decide, Decision, TunnelRequest
from relay.policy.hook import load_hook

__all__ = ["Decide", "Decision", "TunnelRequest", "load_hook"]
