"""Synthetic clicks with known structure: communities, content, popularity, new items, drift.

The generative model has U users, I items, K communities with J topics each, and N rows. All values are drawn with numpy
from `seed`; time runs from 0 to 1.

1.  Communities. User u belongs to community c_u and item i to d_i, both drawn with probability proportional to
    (k + 1)^-1/2, k = 0 .. K-1 (the first K users and items get one community each, so that none is empty). Item i has a
    topic s_i inside its community, uniform over J; its global topic is g_i = J d_i + s_i.
2.  Popularity. r_i is a random permutation of 1 .. I, item i has weight p_i = r_i^-item_exponent. Users likewise have
    weights with user_exponent. Ids say nothing about rank, community or birth.
3.  New items. A share `new_items` of the items, never the most popular one of a community, is born at b_i ~ U(0, 1);
    all others at b_i = 0.
4.  Drift. A share `drift` of the users moves at a time m_u ~ U(0, 1) to another community, uniform over the K - 1
    others. c_u(t) is the community of u at time t.
5.  Content. x_i = A_{d_i} + B_{g_i} / 2 + content_noise E_i in R^content_dim, all entries of A, B, E ~ N(0, 1 /
    content_dim): the coarse part of the vector says the community, a finer part the topic, the rest is noise.
6.  Rows. t_1 < ... < t_N are sorted U(0, 1) draws. The user is drawn by weight. With probability `focus` the item
    comes from the user's community, P(i) ~ p_i [d_i = c_u(t)] [b_i <= t], else from all, P(i) ~ p_i [b_i <= t]. Device
    is one of 4 with probability proportional to 1 / (k + 1); hour is floor(24 (28 t mod 1)).
7.  Clicks. y ~ Bernoulli(sigmoid(z)) with
        z = bias + M[c_u(t), d_i] + .5 a_u + quality (h_{g_i} + n_i) / sqrt(2) + v_device + .3 sin(2 pi hour / 24)
            + .5 exp(-(t - b_i) / .05) [b_i > 0],
    M[k, k] = affinity, M[k, l] ~ N(0, .3^2) for k != l, a_u, h, n_i ~ N(0, 1), v ~ N(0, .3^2). The effect of an item is
    thus half that of its topic, which content tells also for a new item, and half its own, which a collision loses.
    `bias` makes the mean of sigmoid(z) over the rows equal `click_rate`.

Features are user, item, device and hour; with tags=True also the multi-hot `tags`: empty with probability .1, else the
global topic of the item and 0 to 2 tags uniform over K J, fixed per item. `age` = t - b_i is dense. Rows carry `time`
and `probability` = sigmoid(z), the oracle: no model of these rows has a higher expected AUC or a lower expected
log-loss. `ClickData.truth()` returns the planted quantities, `ClickData.content("item")` the vectors x_i.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from data.ids import Field
from data.schema import DataError
from data.source import Source
from data.splits import with_split

NUM_DEVICES, NUM_HOURS = 4, 24


@dataclass(frozen=True, kw_only=True)
class Config:
    """The parameters of the model that this module describes.

    Raises:
        DataError: a size is below 1, there are fewer users or items than communities, or a share is outside 0..1.
    """

    num_rows: int = 300_000
    num_users: int = 6_000
    num_items: int = 4_000
    num_communities: int = 20
    num_topics: int = 5
    content_dim: int = 32
    item_exponent: float = 1.0
    user_exponent: float = 0.6
    new_items: float = 0.2
    drift: float = 0.1
    focus: float = 0.5
    affinity: float = 2.0
    quality: float = 0.7
    content_noise: float = 0.3
    click_rate: float = 0.25
    tags: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("num_rows", "num_topics", "content_dim"), 1) | {"num_communities": 2, "seed": 0}
        least |= dict.fromkeys(("num_users", "num_items"), self.num_communities)
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise DataError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        for name in ("new_items", "drift", "focus"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if not 0 < self.click_rate < 1:
            raise DataError(f"click_rate must be above 0 and below 1, not {self.click_rate}")


@dataclass(frozen=True)
class Clicks:
    """The generated rows and the planted quantities.

    Attributes:
        rows: the columns user, item, device, hour, (tags,) age, label, time, probability, in the order of time.
        content: the vectors of the items, float32 [num_items, content_dim].
        truth: the planted quantities: user_community, user_community_after (a move), user_move (its time, inf for
            none), user_rank, user_effect [num_users]; item_community, item_topic (global), item_birth, item_rank,
            item_effect [num_items]; affinity [K, K].
    """

    rows: pl.DataFrame
    content: np.ndarray
    truth: dict[str, np.ndarray]


def generate(config: Config) -> Clicks:
    """Draw clicks.

    >>> clicks = generate(Config(num_rows=1_000, num_users=50, num_items=40, num_communities=4))
    >>> clicks.rows.columns
    ['user', 'item', 'device', 'hour', 'age', 'label', 'time', 'probability']
    >>> clicks.content.shape
    (40, 32)
    """
    # A stream for each part: another number of rows leaves users and items as they are.
    user_rng, item_rng, row_rng, click_rng = (np.random.default_rng([config.seed, stream]) for stream in range(4))
    users = _users(config, user_rng)
    items, content, bags = _items(config, item_rng)
    rows, score = _rows(config, row_rng, users, items)
    probability = _sigmoid(score + _bias(score, config.click_rate))
    label = (click_rng.random(config.num_rows) < probability).astype(np.int8)
    frame = pl.DataFrame(rows).with_columns(label=label, probability=probability)
    if config.tags:
        frame = frame.insert_column(4, bags.gather(rows["item"]).alias("tags"))
    time = frame.drop_in_place("time")
    return Clicks(frame.insert_column(-1, time), content, users | items)


def read(*, split: str = "time", **config: float) -> Source:
    """Return generated clicks as a source, split by time or at random; ids are those of the generator."""
    settings = Config(**config)  # type: ignore[arg-type]
    clicks = generate(settings)
    sizes = {"user": settings.num_users, "item": settings.num_items, "device": NUM_DEVICES, "hour": NUM_HOURS}
    fields = [Field(name, size) for name, size in sizes.items()]
    if settings.tags:
        fields.append(Field("tags", settings.num_communities * settings.num_topics, multi_hot=True))
    return Source(
        with_split(clicks.rows.lazy(), settings.num_rows, split, settings.seed),
        tuple(fields),
        label="label",
        dense=("age",),
        group="user",
        columns=("time", "probability"),
        content={"item": clicks.content},
        truth=clicks.truth,
    )


OPTIONS = {"split": "time", **asdict(Config())}


def _users(config: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    size, communities = config.num_users, config.num_communities
    community = _communities(rng, size, communities)
    moves = rng.random(size) < config.drift
    other = (community + rng.integers(1, communities, size)) % communities
    taste = 0.3 * rng.standard_normal((communities, communities))
    np.fill_diagonal(taste, config.affinity)
    return {
        "user_community": community,
        "user_community_after": np.where(moves, other, community),
        "user_move": np.where(moves, rng.random(size), np.inf),
        "user_rank": rng.permutation(size) + 1,
        "user_effect": 0.5 * rng.standard_normal(size),
        "affinity": taste,
    }


def _items(config: Config, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, pl.Series]:
    size, communities, topics = config.num_items, config.num_communities, config.num_communities * config.num_topics
    community = _communities(rng, size, communities)
    topic = community * config.num_topics + rng.integers(config.num_topics, size=size)
    rank = rng.permutation(size) + 1
    new = rng.random(size) < config.new_items
    by_rank = np.argsort(rank)
    new[by_rank[np.unique(community[by_rank], return_index=True)[1]]] = False  # something to click on from the start
    centre = rng.standard_normal((communities, config.content_dim))
    detail = rng.standard_normal((topics, config.content_dim)) / 2
    noise = config.content_noise * rng.standard_normal((size, config.content_dim))
    content = (centre[community] + detail[topic] + noise) / np.sqrt(config.content_dim)
    effect = (rng.standard_normal(topics)[topic] + rng.standard_normal(size)) / np.sqrt(2)
    truth = {
        "item_community": community,
        "item_topic": topic,
        "item_birth": np.where(new, rng.random(size), 0.0),
        "item_rank": rank,
        "item_effect": config.quality * effect,
    }
    return truth, content.astype(np.float32), _tags(rng, topic, topics)


def _tags(rng: np.random.Generator, topic: np.ndarray, topics: int) -> pl.Series:
    """Draw the tags of each item: none, or its topic and up to two others."""
    tags = np.column_stack([topic, rng.integers(topics, size=(len(topic), 2))])
    number = np.where(rng.random(len(topic)) < 0.1, 0, rng.integers(1, 4, len(topic)))
    return pl.DataFrame({"tags": tags, "number": number}).select(
        pl.col("tags").cast(pl.List(pl.Int64)).list.head(pl.col("number"))
    )["tags"]


def _rows(
    config: Config, rng: np.random.Generator, users: dict[str, np.ndarray], items: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw the columns of the rows; return them and the score of each row without the bias."""
    size = config.num_rows
    time = np.sort(rng.random(size))
    user = _draw(rng, np.cumsum(users["user_rank"] ** -config.user_exponent), size)
    moved = time >= users["user_move"][user]
    community = np.where(moved, users["user_community_after"][user], users["user_community"][user])
    inside = rng.random(size) < config.focus
    item = _draw_items(rng, items, config.item_exponent, np.where(inside, community, -1), time)
    device = _draw(rng, np.cumsum(1 / np.arange(1.0, NUM_DEVICES + 1)), size)
    hour = np.floor(NUM_HOURS * (28 * time % 1)).astype(np.int64)
    birth = items["item_birth"][item]
    score = users["affinity"][community, items["item_community"][item]]
    score = score + users["user_effect"][user] + items["item_effect"][item]
    score += 0.3 * rng.standard_normal(NUM_DEVICES)[device] + 0.3 * np.sin(2 * np.pi * hour / NUM_HOURS)
    score += 0.5 * np.exp(-(time - birth) / 0.05) * (birth > 0)
    return {"user": user, "item": item, "device": device, "hour": hour, "age": time - birth, "time": time}, score


def _draw(rng: np.random.Generator, upto: np.ndarray, size: int) -> np.ndarray:
    """Draw indices, each with the probability of its step in the cumulative weights `upto`."""
    return np.minimum(np.searchsorted(upto, rng.random(size) * upto[-1], side="right"), len(upto) - 1)


def _draw_items(
    rng: np.random.Generator, items: dict[str, np.ndarray], exponent: float, community: np.ndarray, time: np.ndarray
) -> np.ndarray:
    """Draw items by weight among those born, of the given community (-1: of all).

    Items not yet born are drawn again, which gives exactly the distribution over those that are born.
    """
    order = np.argsort(items["item_community"], kind="stable")  # communities lie side by side
    upto = np.cumsum(items["item_rank"][order] ** -exponent)
    ends = upto[np.flatnonzero(np.diff(items["item_community"][order], append=-1))]
    low = np.where(community < 0, 0.0, np.concatenate([[0.0], ends[:-1]])[community])
    high = np.where(community < 0, upto[-1], ends[community])
    item = np.zeros(len(time), np.int64)
    open_ = np.arange(len(time))
    while len(open_):
        point = low[open_] + rng.random(len(open_)) * (high - low)[open_]
        drawn = order[np.minimum(np.searchsorted(upto, point, side="right"), len(upto) - 1)]
        item[open_] = drawn
        open_ = open_[items["item_birth"][drawn] > time[open_]]
    return item


def _communities(rng: np.random.Generator, size: int, number: int) -> np.ndarray:
    community = _draw(rng, np.cumsum(np.arange(1.0, number + 1) ** -0.5), size)
    community[:number] = np.arange(number)
    return rng.permutation(community)


def _sigmoid(score: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-score))


def _bias(score: np.ndarray, rate: float) -> float:
    """Return the constant for which the mean probability is `rate`, by bisection."""
    low, high = -float(score.max()) - 20, -float(score.min()) + 20
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(score + middle).mean() < rate else (low, middle)
    return (low + high) / 2
