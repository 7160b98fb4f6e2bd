"""What several tests of configs share."""


def leaves(node, prefix=""):
    """(key with its parents, value) of each value below a node."""
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
