"""The control plane on one machine: messages to feed it, and `make control-plane`."""
