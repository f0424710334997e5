# The sidecar, and the init container that captures connections for it. The context is a folder that `make images` fills: the
# stripped binary, nft and iptables with the libraries they need, the licences of all that, and nothing else: no shell.
FROM scratch
COPY . /
ENV PATH=/usr/local/bin:/usr/sbin
# Numbers, so that a kubelet can see that it is not root.
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/outrigger-proxy"]
