"""What a config names, looked up among what there is."""

from fvcore.common.registry import Registry

from clim.errors import UserError


def registered(registry: Registry, name: str, *, key: str, otherwise: str = ""):
    """The class or function called ``name``. UserError where there is none, with the names that there are.

    Args:
        key: of the config, which holds the name.
        otherwise: what else the key may be, behind the names.
    """
    if name not in registry:
        known = ", ".join(sorted(n for n, _ in registry))
        raise UserError(f"{key} {name!r} is unknown: choose one of {known}{otherwise}.")
    return registry.get(name)
