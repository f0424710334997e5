# The control plane and its command line. The context is a folder that `make images` fills: the stripped binaries, the
# libraries they need, the licences of all that, and nothing else: no shell.
FROM scratch
COPY . /
ENV PATH=/usr/local/bin
# Numbers, so that a kubelet can see that it is not root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/outrigger-control"]
