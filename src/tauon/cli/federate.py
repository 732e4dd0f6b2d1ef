"""`tauon federate`: training at sites that keep their data: simulated ones, or real ones over a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tauon.cli.quantities import time_in_seconds
from tauon.cli.run import Request, fresh_option, place_of_run, recipe_arguments, run_verb
from tauon.cli.show import pick_show

__all__ = ["federate_command"]

GROUP_EPILOG = """\b
Examples:
  tauon federate mnist-mlp --simulate 3 --rounds 10                       three sites with equal parts of the data
  tauon federate mnist-mlp --simulate 5 federate.simulate.split.kind=dirichlet federate.simulate.split.alpha=0.5
  tauon federate mnist-mlp --simulate 5 federate.strategy=fedprox

\b
Each site trains on its own examples (train.epochs is the work of one round, one pass by default), and only changes of the weights are combined.
The report says what that gained each site over training alone, and what it lost against all data in one place. The result is a run like any
other: tauon evaluate, explain, compress, export and serve work on it. Settings are those of the recipe's section `federate` (docs: Federated
training).

\b
Real sites (docs: Federated training between sites):
  tauon federate keys coordinator --help     keys and certificates of the coordinator
  tauon federate keys site --help            the key of a site
  tauon federate spec --help                 what a site's data look like, for a coordinator without data, and for common preprocessing
  tauon federate merge --help                the preprocessing of all sites together
  tauon federate serve --help                at the coordinator
  tauon federate join --help                 at each site
"""

DEFAULTS = {"rounds": "10", "epochs": "1", "sites": "3"}
"""Where neither the recipe nor the command says otherwise."""


class Federate(click.Group):
    """`tauon federate RECIPE` simulates; serve, join, spec, merge and keys are verbs of their own."""

    default = "simulate"

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return self.default, self.commands[self.default], args

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "RECIPE [OPTIONS] [a.b=c]... | serve | join | spec | merge | keys")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = [self.default, *args]  # options before the recipe
        return super().parse_args(ctx, args)


@click.group("federate", cls=Federate, epilog=GROUP_EPILOG)
def federate_command() -> None:
    """Train the model of RECIPE at sites that keep their data; simulated here, and compared with each site alone and with all data in one place."""


@federate_command.command("simulate")
@recipe_arguments
@click.option(
    "--simulate",
    type=click.IntRange(1),
    help="Number of sites to simulate on this machine. Default: federate.simulate.sites or federate.sites of the recipe, or 3.",
)
@click.option("--rounds", type=click.IntRange(1), help="Rounds. Default: those of the recipe, or 10.")
@fresh_option
def simulate_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, simulate: int | None, rounds: int | None,
    fresh: bool,
) -> None:  # fmt: skip
    """Train the model of RECIPE at simulated sites, and compare it with each site alone and with all data in one place."""
    given = [*_defaults(recipe, assignments), *assignments]
    given += [f"federate.simulate.sites={simulate}"] if simulate is not None else []
    given += [f"federate.rounds={rounds}"] if rounds is not None else []
    run_verb(Request(recipe, tuple(given), root, fresh), pick_show(quiet, as_json), verb="federate", stages=None)


def _defaults(recipe: str, assignments: tuple[str, ...]) -> list[str]:
    """Return a name, three simulated sites, rounds, and one pass a round, for a recipe that is not federated."""
    from tauon.recipe import load_recipe

    tree: Any = load_recipe(recipe, [a for a in assignments if not a.startswith("federate.")])
    federate = getattr(tree, "federate", None)
    sites = DEFAULTS["sites"] if federate is None else federate.raw_value("sites") or DEFAULTS["sites"]
    said = ("federate.simulate=", "federate.simulate.sites=")
    simulated = [] if any(a.startswith(said) for a in assignments) else [f"federate.simulate.sites={sites}"]
    if federate is not None:
        return [] if federate.raw_value("simulate") is not None else simulated
    found = (
        simulated if any(a.startswith("federate.rounds=") for a in assignments) else [*simulated, f"federate.rounds={DEFAULTS['rounds']}"]
    )
    if not any(a.startswith("name=") for a in assignments):
        found.append(f"name={tree.name}-federated")  # not the run of one place
    lengths = ("steps", "epochs", "tokens", "time")
    if any(a.startswith(tuple(f"train.{name}=" for name in lengths)) for a in assignments):
        return found
    return [*found, *(f"train.{name}=null" for name in lengths if name != "epochs"), f"train.epochs={DEFAULTS['epochs']}"]


# ---------------------------------------------------------------------------------------------- real sites


KEYS = click.option(
    "--keys", type=click.Path(path_type=Path, file_okay=False), default=Path("keys"), show_default=True, help="Folder of keys and certificates."
)  # fmt: skip


@federate_command.command("serve")
@recipe_arguments
@click.option("--address", default="127.0.0.1:9443", show_default=True, help="host:port to listen on; 0.0.0.0:9443 for other machines.")
@KEYS
@click.option(
    "--wait-for", "sites", type=click.IntRange(1), help="Sites that must have joined before the first round. Default: federate.sites."
)
@click.option("--wait", default="1h", show_default=True, help="Time to wait for them: 90s, 30m, 2h.")
@fresh_option
@click.option(
    "--spec",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The coordinator has no data: shapes and preprocessing from this file.",
)
def serve_command(
    recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, address: str, keys: Path, sites: int | None,
    wait: str, spec: Path | None, fresh: bool,
) -> None:  # fmt: skip
    """Be the coordinator of RECIPE: serve the sites of the roster until all rounds are done. Killed and started again, it continues.

    The recipe's data are the coordinator's own, of the same form as the sites': the model is validated and evaluated on them, never trained. With
    --spec it needs none: the recipe's data are not read, and only the sites measure the model.
    """
    from tauon.federated.flower import check_certificate, load_flower, read_roster
    from tauon.federated.network import ServeAt, network, parse_address

    parse_address(address, listen=True)
    tree = _federated(recipe, assignments)
    wanted = sites or tree.federate.raw_value("sites")
    if wanted is None:
        raise click.UsageError("say how many sites to wait for: --wait-for 3, or federate.sites in the recipe")
    _refuse_missing(keys / "server.crt", "tauon federate keys coordinator HOST")
    load_flower()
    check_certificate(keys / "server.crt")
    if len(expected := read_roster(keys / "roster")) < wanted:
        click.echo(
            f"{keys / 'roster'} names {len(expected)} sites, fewer than the {wanted} that are waited for: add the others' lines", err=True
        )
    _say_if_done(recipe, tree.name, root, assignments, fresh)
    end = ServeAt(address, keys, wanted, time_in_seconds(wait, "--wait"))
    given = (*assignments, "federate.simulate=null", *(() if spec is None else (f"data.spec={spec.resolve()}", "data.rows=false")))
    stages = None if spec is None else ("prepare", "train", "federate", "report")
    with network(end):
        run_verb(Request(recipe, given, root, fresh), pick_show(quiet, as_json), verb="federate", stages=stages)


@federate_command.command("join")
@click.argument("address")
@recipe_arguments
@click.option("--name", required=True, help="Name of this site, as in the coordinator's roster.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="The site's own data: a file or folder for data.source.path.")
@KEYS
@click.option(
    "--spec",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Apply the preprocessing of this file, which all sites have, instead of fitting it.",
)
@click.option("--on", metavar="PLACE", help="Train with several processes: local:2 starts two here. Default: one process.")
@fresh_option
def join_command(
    address: str, recipe: str, assignments: tuple[str, ...], root: Path | None, quiet: bool, as_json: bool, name: str, data: Path | None,
    keys: Path, spec: Path | None, on: str | None, fresh: bool,
) -> None:  # fmt: skip
    """Take part in the federation at ADDRESS (host:port) with this site's data, until the coordinator ends it.

    RECIPE is the coordinator's; only its data are the site's own. The rows stay here. At the end, the run's folder has the federated model.
    """
    from tauon.federated.flower import load_flower
    from tauon.federated.network import JoinAt, network, parse_address

    parse_address(address)
    tree = _federated(recipe, assignments)
    _refuse_missing(keys / f"{name}.key", f"tauon federate keys site {name}")
    _refuse_missing(keys / "ca.crt", "the coordinator's ca.crt, copied here")
    load_flower()
    _say_if_done(recipe, tree.name, root, assignments, fresh)
    given = [*assignments, "federate.simulate=null", *([f"data.source.path={data}"] if data is not None else [])]
    given += [f"data.spec={spec.resolve()}"] if spec is not None else []
    if on is not None and _joined_elsewhere(
        Request(recipe, tuple(given), root, fresh), ("--name", name, "--keys", str(keys.resolve())), address, on
    ):
        return
    with network(JoinAt(address, name, keys)):
        run_verb(
            Request(recipe, tuple(given), root, fresh),
            pick_show(quiet, as_json),
            verb="federate",
            stages=("prepare", "train", "evaluate", "report"),
        )


def _federated(recipe: str, assignments: tuple[str, ...]) -> Any:
    """Return the recipe. Raises `RecipeError` if it is not federated."""
    from tauon.errors import RecipeError
    from tauon.recipe import load_recipe

    tree: Any = load_recipe(recipe, assignments)
    if getattr(tree, "federate", None) is None:
        raise RecipeError(f"{recipe} has no section federate: add federate.rounds=20, and give every site the same recipe.")
    return tree


def _say_if_done(recipe: str, name: str, root: Path | None, assignments: tuple[str, ...], fresh: bool) -> None:
    """Say that a run has ended, so that it takes part in nothing any more."""
    from tauon.artifacts import RunFolder

    folder = place_of_run(recipe, name, root, assignments)
    if not fresh and folder.is_dir() and RunFolder(folder).stage("train") is not None:
        click.echo(f"{folder} has done all its rounds. To train again, with all sites: --fresh, or another name (name=...)", err=True)


def _joined_elsewhere(request: Request, words: tuple[str, ...], address: str, on: str) -> bool:
    """Start the processes of a site; each runs this command without --on. Return False for one process, here."""
    import sys

    from tauon.artifacts import RunFolder
    from tauon.errors import RunError
    from tauon.launch import Here, Job, Local, launch
    from tauon.recipe import load_recipe, to_yaml
    from tauon.stages.context import null_callback
    from tauon.stages.extensions import set_aside

    tree = load_recipe(request.recipe, request.assignments, on=on)
    if isinstance(tree.launch, Here):
        return False
    if not isinstance(tree.launch, Local):
        raise RunError(f"--on {on}: the processes of a site are started on its machine only. Use local:2, for example.")
    folder = place_of_run(request.recipe, tree.name, request.root, request.assignments)
    if request.fresh and folder.exists():  # once, here: each process would do it again
        with RunFolder.open(folder) as record:
            set_aside(record, null_callback)
    job = Job(tree.name, "federate", to_yaml(tree), folder.parent, device=tree.train.raw_value("device"))
    command = (
        sys.executable,
        "-m",
        "tauon",
        "federate",
        "join",
        address,
        str(job.recipe_path),
        *words,
        "--root",
        str(folder.parent.absolute()),
    )
    job = Job(tree.name, "federate", job.recipe, folder.parent, device=job.device, words=command)
    launch(tree.launch, job, on_event=lambda kind, **facts: click.echo(str(facts.get("message", kind)), err=True))
    return True


@federate_command.command("spec")
@click.argument("recipe")
@click.argument("assignments", nargs=-1, metavar="[a.b=c]...")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="The site's own data: a file or folder for data.source.path.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
def spec_command(recipe: str, assignments: tuple[str, ...], data: Path | None, out: Path) -> None:
    """Describe a site's data as RECIPE reads them, in a file without rows: shapes, classes, columns, categories, and mean and variance of what is scaled.

    It is what a coordinator without data needs (tauon federate serve --spec); or one of the files of tauon federate merge.
    """
    from tauon.federated.spec import write_site_spec
    from tauon.recipe import load_recipe
    from tauon.stages.context import Context, null_callback

    tree: Any = load_recipe(recipe, [*assignments, *([f"data.source.path={data}"] if data is not None else [])])
    write_site_spec(Context(tree, None, null_callback).splits, out)
    click.echo(f"wrote {out}. It says what these data look like, in clear: read it before you send it")


@federate_command.command("merge")
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write, for everyone.")
def merge_command(specs: tuple[Path, ...], out: Path) -> None:
    """Merge SPECS, the files of tauon federate spec of all sites, into one with the preprocessing of all rows together."""
    from tauon.federated.spec import merge_specs

    spec = merge_specs(specs, out)
    click.echo(
        f"wrote {out}: {len(specs)} sites, examples of shape {list(spec.input_shape or ())}, {spec.outputs} outputs. Give it to every site"
    )


@federate_command.group("keys")
def keys_command() -> None:
    """Make keys and certificates: once at the coordinator, once at each site. Show and compare them."""


@keys_command.command("coordinator")
@click.argument("hosts", nargs=-1, required=True)
@KEYS
def keys_coordinator_command(hosts: tuple[str, ...], keys: Path) -> None:
    """Make the authority, once, and the coordinator's certificate for HOSTS, the names and addresses under which sites reach it.

    Nothing is overwritten. To renew the certificate, move server.key and server.crt away, put ca.key back, and call this again with the same HOSTS.
    """
    from tauon.federated.flower import certificate_fingerprint, make_authority, make_server_certificate

    if not (keys / "ca.key").exists():
        make_authority(keys)
        click.echo(f"wrote {keys / 'ca.key'} (keep it offline) and {keys / 'ca.crt'} (for every site)")
        click.echo(f"fingerprint of ca.crt, for the sites: {certificate_fingerprint(keys / 'ca.crt')}")
    make_server_certificate(keys, list(hosts))
    (keys / "roster").touch()
    click.echo(f"wrote {keys / 'server.key'} and {keys / 'server.crt'} for {', '.join(hosts)}")
    click.echo(f"put one line of each site into {keys / 'roster'}")


@keys_command.command("site")
@click.argument("name")
@KEYS
def keys_site_command(name: str, keys: Path) -> None:
    """Make the key of the site NAME, and print the line for the coordinator's roster."""
    from tauon.federated.flower import make_site_key, site_fingerprint
    from tauon.federated.secagg import Identity, fingerprint

    line = make_site_key(keys, name)
    identity = Identity.of(keys / f"{name}.identity")
    click.echo(line)
    click.echo(
        f"wrote {keys / name}.key, {name}.pub and {name}.identity\n"
        f"fingerprint of the line above, for the coordinator: {site_fingerprint(line)}\n"
        f"fingerprint for secure aggregation, for the other sites: {fingerprint(identity.public)}\n"
        f"the other sites may pin it beforehand: tauon federate keys pin {name}={identity.public.hex()}",
        err=True,
    )


@keys_command.command("show")
@KEYS
def keys_show_command(keys: Path) -> None:
    """Show what is in the folder of keys: fingerprints for comparing over the telephone, names and ends of certificates. No secret is shown."""
    from tauon.federated.flower import describe_keys
    from tauon.federated.secagg import Identity, PinnedKeys, fingerprint

    found = describe_keys(keys)
    found += [(path.name, f"secure aggregation: {fingerprint(Identity.of(path).public)}") for path in sorted(keys.glob("*.identity"))]
    pinned = PinnedKeys(path=keys / "pinned.json")
    found += [(f"pinned: {name}", f"secure aggregation: {fingerprint(pinned[name])}") for name in sorted(pinned)]
    if not found:
        raise click.UsageError(f"{keys} has no keys. Make some: tauon federate keys coordinator --help, tauon federate keys site --help")
    width = max(len(name) for name, _ in found)
    for name, about in found:
        click.echo(f"{name:{width}}  {about}")


@keys_command.command("pin")
@click.argument("sites", nargs=-1, required=True, metavar="NAME=KEY...")
@KEYS
def keys_pin_command(sites: tuple[str, ...], keys: Path) -> None:
    """At a site: pin the public keys of the other sites for secure aggregation, as `tauon federate keys site` printed them there, instead of those that
    the coordinator brings when they first join. With federate.secure_aggregation.first_use=false, no others are accepted.
    """
    from tauon.federated.secagg import PinnedKeys, fingerprint

    keys.mkdir(parents=True, exist_ok=True)
    pinned = PinnedKeys(path=keys / "pinned.json")
    for each in sites:
        name, _, key = each.partition("=")
        try:
            public = bytes.fromhex(key)
        except ValueError:
            public = b""
        if not name or len(public) != 32:
            raise click.UsageError(f"{each!r} is not NAME=KEY with 64 hexadecimal digits")
        pinned.pin(name, public)
        click.echo(f"pinned {name}, fingerprint {fingerprint(public)}")


def _refuse_missing(path: Path, way_out: str) -> None:
    if not path.is_file():
        raise click.UsageError(f"{path} is missing. It comes from: {way_out}. --keys says in which folder it is.")
