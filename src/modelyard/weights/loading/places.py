"""A device map as places of modules: every parameter has one, no name lies in another, tied weights stay together.

Knows names of modules and parameters; whether a device is here is for `devices` to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import RequestError, near_match

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Place", "check_coverage", "check_names", "holder_of", "split_nested", "with_buffers", "with_ties"]

Place = str | int
"""Where a module goes: a device's name, the index of an accelerator, or `disk`."""


def check_names(places: Mapping[str, Place], model: Any) -> None:
    """Raise `RequestError` (`unknown_modules`) for names that are no modules of the model."""
    modules = {name for name, _ in model.named_modules()}
    unknown = sorted(set(places) - modules)
    if not unknown:
        return
    tensors = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    hints = []
    for name in unknown[:8]:
        if name in tensors:
            hints.append(f"`{name}` is a tensor: place its module `{name.rpartition('.')[0]}`")
        elif meant := near_match(name, modules - {""}):
            hints.append(f"`{name}`: did you mean `{meant}`?")
    raise RequestError(
        f"`device_map` names {len(unknown)} modules that the model has not: {_shown(unknown)}",
        code="unknown_modules",
        hint="; ".join(hints) or '`""` is the whole model',
        field="device_map",
        unknown=unknown,
    )


def check_coverage(places: Mapping[str, Place], model: Any) -> None:
    """Raise `RequestError` (`uncovered_parameters`) where a parameter lies in no module of `places`."""
    uncovered = sorted(name for name in model.state_dict() if holder_of(name, places) is None)
    if not uncovered:
        return
    modules = sorted({name.rpartition(".")[0] for name in uncovered})
    raise RequestError(
        f"`device_map` leaves {len(uncovered)} parameters without a place: {_shown(uncovered)}",
        code="uncovered_parameters",
        hint=f'add {_shown([f"`{name}`" for name in modules], 4)} to it, or `""` for everything else',
        field="device_map",
        uncovered=uncovered,
    )


def holder_of(name: str, places: Mapping[str, Place]) -> str | None:
    """The longest module name of `places` that `name` lies in, by whole parts: `layers.1` holds no `layers.10`."""
    while name:
        name = name.rpartition(".")[0]
        if name in places:
            return name
    return None


def split_nested(places: dict[str, Place], model: Any) -> dict[str, Place]:
    """The same places with no name inside another: transformers and accelerate each read nested names their own way."""
    nested = {outer for outer in places if any(_lies_in(inner, outer) for inner in places if inner != outer)}
    if not nested:
        return places
    made: dict[str, Place] = {}

    def place(name: str, where: Place) -> None:
        module = model.get_submodule(name)
        if not any(_lies_in(inner, name) for inner in places if inner != name):
            made[name] = where
            return
        own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters(recurse=False)]
        inner = {str(places[item]) for item in places if item != name and _lies_in(item, name)}
        if own and inner != {str(where)}:
            raise RequestError(
                f"`device_map` splits `{name}`, which has parameters of its own: {_shown(own)}",
                hint=f"give all of `{name}` one place",
                field="device_map",
                parameters=own,
            )
        if own:
            made[name] = where
            return
        for key, _ in module.named_children():
            child = f"{name}.{key}" if name else key
            place(child, places.get(child, where))

    for name in sorted(places, key=lambda item: (item.count("."), item)):
        if not any(_lies_in(name, outer) for outer in places if outer != name):
            place(name, places[name])
    return made


def with_ties(places: dict[str, Place], model: Any) -> dict[str, Place]:
    """Tied weights are one tensor: where one of them is in memory, so is the other, and nothing is read for it twice.

    Left on the disk apart from its partner, a tied weight would be looked for in files that do not hold it.
    """
    made = dict(places)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, partner in tied.items():
        sides = {side: holder_of(side, made) for side in (name, partner)}
        found = {made[holder] for holder in sides.values() if holder is not None}
        if len(found) != 2 or "disk" not in found:
            continue
        # Into memory where that moves nothing else with it, else onto the disk.
        alone = [holder for side, holder in sides.items() if holder == side.rpartition(".")[0]]
        if not alone:
            raise RequestError(
                f"`device_map` puts only one of `{name}` and `{partner}` on the disk, and they are one tensor",
                code="split_tie",
                hint="give the modules of both the same place",
                field="device_map",
                tied=[name, partner],
            )
        moved = next((holder for holder in alone if made[holder] == "disk"), alone[0])
        made[moved] = next(place for place in found if place != made[moved])
    return made


def with_buffers(places: dict[str, Place], model: Any) -> dict[str, Place]:
    """Modules that hold nothing but what is computed (rotary tables) go to the main device, where their users are."""
    missing = {name.rpartition(".")[0] for name, _ in model.named_buffers() if holder_of(name, places) is None}
    main = next((place for place in places.values() if place != "disk"), "cpu")
    return {**places, **dict.fromkeys(sorted(missing), main)}


def _lies_in(inner: str, outer: str) -> bool:
    return outer == "" or inner.startswith(f"{outer}.")


def _shown(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
