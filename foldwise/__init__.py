"""foldwise for your own programs. Only the names in `__all__` and `foldwise.readers` are stable.

    import foldwise

    with foldwise.connect() as client:                 # the `foldwise up` on this machine
        print(client.get("first").best)
    model = foldwise.load_model("first-final")         # a model of the catalogue
    print(model.predict("face.mp4").windows[0].label)

`foldwise.readers` holds what a reader of your own dataset imports.

Not allowed here: code that does the work; this package only passes it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client.connect import connect
    from foldwise.models import load_model

    __version__: str

__all__ = ["__version__", "connect", "load_model"]


def __getattr__(name: str) -> Any:
    # On first use, so that `import foldwise` is quick and needs none of the optional packages.
    if name == "__version__":
        from importlib.metadata import version

        return version("foldwise")
    if name == "connect":
        from client.connect import connect

        return connect
    if name == "load_model":
        from foldwise.models import load_model

        return load_model
    raise AttributeError(f"module 'foldwise' has no attribute {name!r}")
