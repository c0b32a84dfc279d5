"""The control plane on one machine: messages for it, and `make control-plane`."""
