"""What an emulated network consists of, and the file that remembers it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from autopar.core.errors import InputError
from autopar.core.io import check_schema, read_json, write_document

SCHEMA = "autopar.emulation"
SCHEMA_VERSION = 1
STATE_FOLDER = Path("/run/autopar")
MAX_HOSTS = 64
NAME = re.compile(r"[a-z][a-z0-9]{0,7}")
SUBNET = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}")
RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)bit")
UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
INTERFACE = "eth0"
"""Name of the link inside each host."""
PORT = 29500


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """An emulated network.

    Attributes:
        name: Begins the names of all its parts.
        subnet: First three numbers of its addresses.
        rates_bit_per_s: Of the link of each host, both ways; 0 is not shaped.
        quotas_cores: Cores of CPU time of each host; 0 is not limited.

    Raises:
        InputError: A value is out of range.
    """

    name: str = "ap"
    subnet: str = "10.77.0"
    rates_bit_per_s: tuple[float, ...] = (0.0, 0.0)
    quotas_cores: tuple[float, ...] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"name '{self.name}' must be up to 8 small letters and digits, a letter first",
                hint="use --name ap",
            )
        octets = self.subnet.split(".")
        if not SUBNET.fullmatch(self.subnet) or any(int(octet) > 255 for octet in octets):
            raise InputError(
                f"subnet '{self.subnet}' must be three numbers up to 255",
                hint="use --subnet 10.77.0",
            )
        if not 1 <= self.hosts <= MAX_HOSTS:
            raise InputError(f"{self.hosts} hosts", hint=f"use 1 to {MAX_HOSTS}")

    @property
    def hosts(self) -> int:
        """Number of hosts."""
        return len(self.rates_bit_per_s)

    @property
    def bridge(self) -> str:
        """Bridge that joins the hosts."""
        return f"{self.name}-br"

    @property
    def endpoint(self) -> str:
        """Where ranks on several hosts meet: a port of host 0."""
        return f"{self.address(0)}:{PORT}"

    def host(self, number: int) -> str:
        """Name of a host, of its namespace and of its CPU group."""
        return f"{self.name}-{number}"

    def plug(self, number: int) -> str:
        """The end of a host's link that is in the bridge."""
        return f"{self.name}-v{number}"

    def address(self, number: int) -> str:
        """Address of a host."""
        return f"{self.subnet}.{number + 1}"

    @property
    def state(self) -> Path:
        """The file that says it is up."""
        return state_file(self.name)

    def save(self) -> None:
        """Remember it.

        Raises:
            InputError: The file cannot be written.
        """
        write_document(self.state, SCHEMA, SCHEMA_VERSION, asdict(self))

    @classmethod
    def load(cls, name: str) -> Layout:
        """The network of a name that is up.

        Raises:
            InputError: There is none, or its file is damaged.
        """
        path = state_file(name)
        if not path.is_file():
            raise InputError(
                f"no emulated network '{name}' is up", hint="start it with scripts/emulate up"
            )
        data = read_json(path)
        check_schema(data, path, SCHEMA, SCHEMA_VERSION)
        try:
            return cls(
                name=data["name"],
                subnet=data["subnet"],
                rates_bit_per_s=tuple(data["rates_bit_per_s"]),
                quotas_cores=tuple(data["quotas_cores"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}: bad field: {error}", hint=f"remove {path}") from error


def state_file(name: str) -> Path:
    """Where the network of a name is remembered."""
    return STATE_FOLDER / f"emulate-{name}.json"


def parse_rates(text: str | None, hosts: int) -> tuple[float, ...]:
    """Rates in bit/s from ``50mbit`` (all hosts) or ``50mbit,1gbit`` (one each).

    Raises:
        InputError: Not a rate, or another number of them.
    """
    return tuple(_rate(part) for part in _spread(text or "0bit", hosts, "--rate"))


def parse_quotas(text: str | None, hosts: int) -> tuple[float, ...]:
    """Cores from ``0.5`` (all hosts) or ``0.5,1`` (one each).

    Raises:
        InputError: Not a number, negative, or another number of them.
    """
    quotas = []
    for part in _spread(text or "0", hosts, "--quota"):
        try:
            cores = float(part)
        except ValueError:
            cores = -1.0
        if not 0.0 <= cores < 1e4:
            raise InputError(f"--quota {part} is no number of cores", hint="use --quota 0.5")
        quotas.append(cores)
    return tuple(quotas)


def _rate(text: str) -> float:
    found = RATE.fullmatch(text.lower())
    if found is None:
        raise InputError(f"--rate {text} is no rate", hint="use --rate 50mbit")
    return float(found[1]) * UNITS[found[2]]


def _spread(text: str, hosts: int, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, hosts):
        raise InputError(
            f"{option} {text} has {len(parts)} values for {hosts} hosts",
            hint="give one for all hosts or one for each",
        )
    return parts if len(parts) == hosts else parts * hosts
