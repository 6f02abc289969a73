module masque-relay

go 1.25

tool github.com/quic-go/masque-go/cmd/proxy

require github.com/quic-go/masque-go v0.5.0
