"""The peers, one adapter a file. The first is this project's relay; the rest is what it is compared with."""

from . import aioquic_relay, caddy, capsule_relay, direct, envoy, h2o, haproxy, masque_go, nginx, pproxy, squid

#: The order of the table.
ADAPTERS = {
    "direct": direct.start,
    "capsule-relay": capsule_relay.start,
    "haproxy": haproxy.start,
    "nginx": nginx.start,
    "squid": squid.start,
    "envoy": envoy.start,
    "caddy": caddy.start,
    "h2o": h2o.start,
    "masque-go": masque_go.start,
    "pproxy": pproxy.start,
    "aioquic": aioquic_relay.start,
}
