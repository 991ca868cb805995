"""Synthetic embeddings of low intrinsic dimension, the same ones for the same seed.

In a latent space of 48 dimensions with a power-law spectrum lies a mixture of topics and
subtopics with Zipf's weights. A fixed random map of two layers (linear and tanh: a curved
manifold) lifts it to the wanted dimensions; a common mean, for embeddings are not centred,
and noise are added; then vectors get length one.

Rows come in blocks with a generator each, so that a smaller set is the start of a larger
one. Queries are another stream of the same distribution.
"""

import numpy as np

BLOCK = 10_000
LATENT = 48
TOPICS = 200
SUBTOPICS = 5
SPREAD = 0.8
SUBSPREAD = 0.7
BEND = 0.7
MEAN = 0.5
NOISE = 0.5

BASE_STREAM = 0
QUERY_STREAM = 1


class Synthetic:
    def __init__(self, dimensions, seed=7):
        self.dimensions = dimensions
        self.seed = seed
        random = np.random.default_rng([seed, 99])

        def normal(*shape):
            return random.standard_normal(shape).astype(np.float32)

        spectrum = (1 + np.arange(LATENT)) ** -0.6
        spectrum *= np.sqrt(LATENT / (spectrum.astype(np.float32) ** 2).sum())
        self.spectrum = spectrum.astype(np.float32)
        self.topics = normal(TOPICS, LATENT) * self.spectrum * SPREAD
        self.subtopics = normal(TOPICS, SUBTOPICS, LATENT) * self.spectrum * SUBSPREAD
        scales = np.exp(random.normal(0.30, 0.25, (TOPICS, SUBTOPICS)))
        self.scales = scales.astype(np.float32)
        weights = 1.0 / (1 + np.arange(TOPICS)) ** 0.6
        self.weights = weights / weights.sum()
        hidden = 4 * LATENT
        self.linear = normal(LATENT, dimensions) / np.float32(np.sqrt(LATENT))
        self.inner = normal(LATENT, hidden) / np.float32(np.sqrt(LATENT))
        self.outer = normal(hidden, dimensions) / np.float32(np.sqrt(hidden)) * np.float32(BEND)
        self.mean = normal(dimensions) * np.float32(MEAN)

    def block(self, stream, number):
        random = np.random.default_rng([self.seed, stream, number])
        topic = random.choice(TOPICS, BLOCK, p=self.weights)
        subtopic = random.integers(0, SUBTOPICS, BLOCK)
        scale = self.spectrum * self.scales[topic, subtopic][:, None]
        latent = self.topics[topic] + self.subtopics[topic, subtopic]
        latent += random.standard_normal((BLOCK, LATENT), dtype=np.float32) * scale
        rows = latent @ self.linear + np.tanh(latent @ self.inner) @ self.outer + self.mean
        rows += random.standard_normal((BLOCK, self.dimensions), dtype=np.float32) * NOISE
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def fill(self, rows, stream):
        """Fills an array, which may be a file."""
        for start in range(0, len(rows), BLOCK):
            part = rows[start : start + BLOCK]
            part[:] = self.block(stream, start // BLOCK)[: len(part)]
