"""Data sets, how they are dealt to clients, and what each client then holds."""

from fedunlearn.data.cache import default_cache
from fedunlearn.data.catalogue import DatasetInfo, catalogue
from fedunlearn.data.dataset import Dataset, Source
from fedunlearn.data.digits import Digits
from fedunlearn.data.fashion_mnist import FashionMnist
from fedunlearn.data.federation import ClientData, Federation, federate
from fedunlearn.data.fetch import fetch
from fedunlearn.data.heart import Heart
from fedunlearn.data.lazy import LazyClients
from fedunlearn.data.npz import Npz
from fedunlearn.data.partition import Iid, Natural, Partitioner, clients_of
from fedunlearn.data.shards import Shards
from fedunlearn.data.skew import Dirichlet, Quantity
from fedunlearn.data.watch import Watch

DATASETS: dict[str, type[Source]] = {
    "digits": Digits,
    "fashion_mnist": FashionMnist,
    "heart": Heart,
    "watch": Watch,
    "npz": Npz,
}
"""Name in ``configs/data/`` -> class."""

PARTITIONERS: dict[str, type[Partitioner]] = {
    "iid": Iid,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "quantity": Quantity,
    "natural": Natural,
}
"""Value of ``partition.name`` -> class."""

__all__ = [
    "DATASETS",
    "PARTITIONERS",
    "ClientData",
    "Dataset",
    "DatasetInfo",
    "Digits",
    "Dirichlet",
    "FashionMnist",
    "Federation",
    "Heart",
    "Iid",
    "LazyClients",
    "Natural",
    "Npz",
    "Partitioner",
    "Quantity",
    "Shards",
    "Source",
    "Watch",
    "catalogue",
    "clients_of",
    "default_cache",
    "federate",
    "fetch",
]
