"""What a topology is made, checked, drawn and changed with: `cpu` calls the extension, `reference` is plain torch.

Both have the same functions with the same signatures, on tensors of their own device. What ``cpu`` returns is there.
``reference`` queues work on the device and does not wait for it, unless a function says that it does: no number is read
back, and no tensor's size depends on contents. So a number or a truth may come as a tensor of one element on that
device; :func:`~sparsekern.backends.topology.numbers.read` reads many at once. Both break ties, and treat NaNs, alike.
Random draws follow the same distribution but are other draws. ``cpu``'s functions have the docstrings.

Which of the two, :func:`sparsekern.backends.choice.topology_of` says.
"""
