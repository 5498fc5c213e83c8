"""Parts from other packages: modules that the entry-point group `vmr_env.plugins` names.

A plugin is a module that registers its parts when it is imported. `import vmr_env` imports all of them, so
that worker processes of every start method know them too:

    [options.entry_points]
    vmr_env.plugins =
        cooking = my_package.cooking
"""

import warnings
from importlib.metadata import entry_points

GROUP = "vmr_env.plugins"


def load_plugins() -> None:
    """Import every plugin. One that fails is named in a warning and does not stop the others."""
    for plugin in entry_points(group=GROUP):
        try:
            plugin.load()
        except Exception as error:  # whatever a foreign module raises
            warnings.warn(
                f"plugin {plugin.name!r} ({plugin.value}) of the group {GROUP} cannot be loaded: "
                f"{type(error).__name__}: {error}",
                stacklevel=2,
            )
