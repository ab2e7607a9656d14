"""`python -m experiments bench semantic`: tokenizers, vector-quantize-pytorch and faiss; look-ups and MultiHash.

The content is 200,000 vectors of 384 numbers around 2,000 centres; codes are 3 x 256.
"""

import torch
from rich.console import Console
from torch import Tensor

import embcomp
from embcomp.nn import CompressedEmbeddingBag
from embcomp.ops.kmeans import kmeans
from embcomp.semantic_ids import Neighbours, ResidualKMeans
from experiments.bench import BenchRow
from experiments.bench.timing import paired

LEVELS, SIZE, WIDTH = 3, 256, 384
ITERATIONS = 25  # faiss's number


def run(console: Console, *, items: int = 200_000, rounds: int = 7) -> list[BenchRow]:
    """Run all comparisons; `items` is the number of content vectors, `rounds` the number of timings of encoding."""
    content = _content(items)
    console.log("encoding")
    results = _encoding(content[: items // 10], rounds)
    console.log("fitting")
    results += _fitting(content, max(1, rounds // 3))
    console.log("look-ups in training")
    return results + _look_ups(3 * rounds)


def _content(items: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2_000, WIDTH, generator=generator)
    return centres[torch.arange(items) % 2_000] + 0.5 * torch.randn(items, WIDTH, generator=generator)


def _encoding(content: Tensor, rounds: int) -> list[BenchRow]:
    """Time encoding with the same codebooks and vectors, in evaluation."""
    from vector_quantize_pytorch import ResidualVQ

    tokenizer = ResidualKMeans(LEVELS, SIZE, iterations=2, rounds=0).fit(content[:5_000])
    vq = ResidualVQ(dim=WIDTH, num_quantizers=LEVELS, codebook_size=SIZE).eval()
    for layer, codebook in zip(vq.layers, tokenizer.codebooks, strict=True):
        layer._codebook.embed.data.copy_(codebook.unsqueeze(0))  # pyright: ignore
    theirs = "ResidualVQ in evaluation"

    def encode() -> Tensor:
        with torch.inference_mode():
            return vq(content)[1]

    agree = float((encode() == tokenizer.encode(content)).double().mean())
    if agree < 0.999:
        raise RuntimeError(f"only {agree:.1%} of the codes agree: this bench compares different work")
    candidates = {theirs: encode, "Tokenizer.encode": lambda: tokenizer.encode(content)}
    return paired(candidates, against=theirs, rounds=rounds, warmup=1)


def _fitting(content: Tensor, rounds: int) -> list[BenchRow]:
    """Time `fit` against k-means of faiss, with its own sample and iterations, on each level's residuals."""
    import faiss

    faiss.omp_set_num_threads(1)

    def theirs() -> None:
        rest = content.numpy()
        for level in range(LEVELS):
            means = faiss.Kmeans(WIDTH, SIZE, niter=ITERATIONS, seed=level)
            means.train(rest)
            assert means.index is not None
            assert means.centroids is not None
            rest = rest - means.centroids[means.index.search(rest, 1)[1][:, 0]]

    sample = content[torch.randperm(len(content), generator=torch.Generator().manual_seed(1))[: 256 * SIZE]]

    def their_level() -> None:
        faiss.Kmeans(WIDTH, SIZE, niter=ITERATIONS).train(sample.numpy())

    whole, level = f"faiss, {LEVELS} levels", f"faiss, {ITERATIONS} iterations of one level"
    return [
        *paired(
            {whole: theirs, "ResidualKMeans.fit": lambda: ResidualKMeans(LEVELS, SIZE).fit(content)},
            against=whole,
            rounds=rounds,
            warmup=0,
        ),
        *paired(
            {level: their_level, "kmeans": lambda: kmeans(sample, SIZE, iterations=ITERATIONS, tolerance=0.0, seed=0)},
            against=level,
            rounds=rounds,
            warmup=0,
        ),
    ]


def _look_ups(rounds: int, batch: int = 8192, dim: int = 64, rows: int = 100_000) -> list[BenchRow]:
    """Time forward, backward and SGD on sparse rows of 3 look-ups: pieces of an item, and hashes of its id."""
    items = 200_000
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(SIZE, (items, LEVELS), generator=generator)
    ids, grad = torch.randint(items, (batch, 1), generator=generator), torch.randn(batch, dim, generator=generator)
    without = codes.clone()
    without[::50] = -1
    new = torch.arange(0, items, 50)
    counts = torch.ones(items).index_fill(0, new, 0)
    near = Neighbours(new, torch.randint(items, (len(new), 20), generator=generator).int(), torch.ones(len(new), 20))
    methods = {
        "MultiHash": embcomp.MultiHash(rows=rows, num_hashes=3),
        "SemanticIds, prefixes": embcomp.SemanticIds(codes, embcomp.PrefixNgram(3), rows),
        "SemanticIds, unigrams": embcomp.SemanticIds(codes, embcomp.Unigram(), rows),
        "SemanticIds, prefixes, 2 % without content": embcomp.SemanticIds(without, embcomp.PrefixNgram(3), rows),
        "SemanticIds, prefixes, 2 % new, with neighbours": embcomp.SemanticIds(
            codes, embcomp.PrefixNgram(3), rows, counts=counts, neighbours=near
        ),
    }

    def step(method: embcomp.Method):
        bag = CompressedEmbeddingBag(items, dim, method, mode="sum", sparse=True)
        optimizer = torch.optim.SGD(bag.parameters(), lr=0.01)

        def run_step() -> None:
            optimizer.zero_grad()
            bag(ids).backward(grad)
            optimizer.step()

        return run_step

    return paired({name: step(method) for name, method in methods.items()}, against="MultiHash", rounds=rounds)
