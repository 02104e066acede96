"""`optin recipes`: the ways of pruning that `optin sweep` compares."""

from typing import Annotated

import typer

from optin_cli.cli import common, completion


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The one to explain.", show_default="list all", autocompletion=completion.recipes
        ),
    ] = None,
    as_json: common.Json = False,
) -> None:
    """List the ways of pruning that optin sweep compares, or explain one."""
    from optin_cli.artifacts.base import to_json
    from optin_cli.cli.fitting import FittingTable
    from optin_cli.errors import UsageError, did_you_mean
    from optin_cli.options.sweep import RECIPES

    if name is not None and name not in RECIPES:
        raise UsageError(f"Unknown recipe {name!r}.", hint=did_you_mean(name, RECIPES))
    found = RECIPES if name is None else {name: RECIPES[name]}
    if as_json:
        common.show(to_json(dict(found)))
    elif name is not None:
        common.show(f"{name}: {found[name]}")
        common.show(f"compare it: optin sweep CKPT --calib PATH --recipe optin,{name} --keep-flops 0.7,0.5")
    else:
        table = FittingTable(caption="optin sweep CKPT --calib PATH --recipe optin,wanda --keep-flops 0.7,0.5")
        table.add_names("recipe", whole=True)
        table.add_names("what it does")
        for each, words in found.items():
            table.add_row(each, words)
        common.console().print(table)
