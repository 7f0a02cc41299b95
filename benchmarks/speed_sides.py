"""What speed is measured of: one call each of our worlds, of the reference's arithmetic and of peers' shapes.

The reference's arithmetic is that of `astra_env.models.reference`, whose outputs are the authors' own: history,
actions, prompt and rotary tables anew in every pass, and guidance as a pass of its own.
"""

from __future__ import annotations

import copy
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import torch
from torch import Tensor

import astra_env  # noqa: F401  registers the ids
from astra_env.models import WorldModel, WorldState
from astra_env.models.autoencoder import TinyAutoencoder
from astra_env.models.guidance import GuidedVelocity, conditionings
from astra_env.models.reference import RELEASED_1_3B, reference_config, reference_forward
from astra_env.models.reference_sampling import WINDOW, guided, inference_window, sampling_steps, sigma_table
from astra_env.models.transformer import AstraTransformer, TransformerConfig
from benchmarks.diamond import NUM_ACTIONS, DiamondWorld

ENVIRONMENT, MODALITY = "Astra-RT1-v0", "end_effector"
LATENT_SIZE, CHANNELS = 8, 16
TEXT_DIM = 16
"""Width of the prompt's embeddings, one token long, wherever the other side cannot do without one."""
REFERENCE = {**RELEASED_1_3B, "dim": 256, "ffn_dim": 1024, "text_dim": TEXT_DIM, "num_heads": 4, "num_layers": 8}
"""The released configuration at the bundled world's sizes."""


def small_world(dtype: torch.dtype) -> WorldModel:
    """A world of the bundled one's sizes that takes a prompt, with random weights that are not zero."""
    transformer = _random(TransformerConfig({MODALITY: 7}, text_dim=TEXT_DIM))
    for block in transformer.blocks:
        block.fold_adapter()  # type: ignore[operator]  # as in every trained world that is saved
    size = (8 * LATENT_SIZE, 8 * LATENT_SIZE)
    return WorldModel(TinyAutoencoder(), transformer, frame_size=size).placed("cpu", dtype)


def small_worlds(dtype: torch.dtype, compiled: bool) -> dict[bool, WorldModel]:
    """The same world plain (False) and, where asked for, with compiled blocks (True)."""
    worlds = {entry: small_world(dtype) for entry in {False, compiled}}
    if compiled:
        worlds[True].compile()
    return worlds


def small_reference(dtype: torch.dtype) -> AstraTransformer:
    """The released form of the network at the same sizes."""
    return _random(reference_config(REFERENCE)).to(dtype).eval().requires_grad_(False)


def _random(config: TransformerConfig) -> AstraTransformer:
    torch.manual_seed(0)
    transformer = AstraTransformer(config)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return transformer


def old_world(world_model: WorldModel, num_worlds: int = 1, seen: int | None = None) -> WorldState:
    """Worlds that have seen so many latents; if None, those that fill the history window."""
    generator = torch.Generator().manual_seed(0)
    seen = world_model.layout.size + 1 if seen is None else seen
    size = (num_worlds, 4 * (seen - 1) + 1, *world_model.frame_size, 3)
    frames = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    actions = _random_actions(world_model, num_worlds * (seen - 1)).unflatten(0, (num_worlds, -1))
    text_dim = world_model.transformer.config.text_dim
    prompts = None if text_dim is None else torch.zeros(num_worlds, 1, text_dim)
    return world_model.init_state(frames, MODALITY, prompts, actions)


def _random_actions(world_model: WorldModel, num: int) -> Tensor:
    modality = world_model.modalities[MODALITY]
    low, high = torch.tensor(modality.low), torch.tensor(modality.high)
    return low + (high - low) * torch.rand(num, len(low), generator=torch.Generator().manual_seed(1))


def one_forward(world_model: WorldModel, chunk_size: int) -> Callable[[], Tensor]:
    """One pass of the network over a chunk, its history known."""
    state = old_world(world_model)
    actions = _random_actions(world_model, chunk_size)[None]
    encoded = world_model.normalise(actions, state.modality)
    velocity = GuidedVelocity(
        world_model.transformer, conditionings(world_model.transformer, state, encoded, world_model.sampling, None)
    )
    noise = _noise(chunk_size)
    return lambda: velocity(noise, torch.tensor(0.7))


def _noise(chunk_size: int) -> Tensor:
    return torch.randn(1, CHANNELS, chunk_size, LATENT_SIZE, LATENT_SIZE)


def _reference_inputs(transformer: AstraTransformer, chunk_size: int) -> dict[str, Tensor]:
    """What the reference reads for a chunk: the slots of a full window, action rows and one token of text."""
    rows = torch.randn(1, WINDOW + chunk_size, transformer.config.action_dims["openx"] + 1)
    window = inference_window(_noise(WINDOW), rows, chunk_size)
    return window | {"context": torch.zeros(1, 1, TEXT_DIM)}


def reference_pass(transformer: AstraTransformer, chunk_size: int) -> Callable[[], Tensor]:
    """One pass of the released form over a chunk and its history."""
    inputs = _reference_inputs(transformer, chunk_size)
    inputs |= {"latents": _noise(chunk_size), "timestep": torch.tensor([700.0])}
    return lambda: reference_forward(transformer, "openx", inputs)


def reference_step(transformer: AstraTransformer, num_inference_steps: int, guidance_scale: float) -> Callable[[], Any]:
    """One chunk of one latent of the released form."""
    inputs, noise = _reference_inputs(transformer, 1), _noise(1)
    velocity = guided(partial(reference_forward, transformer, "openx"), action_scale=guidance_scale)
    sigmas = sigma_table(num_inference_steps)
    return lambda: list(sampling_steps(velocity, inputs, noise, sigmas))[-1]


def one_step(world_model: WorldModel, state: WorldState, **sampling: Any) -> Callable[[], WorldState]:
    """One chunk of every world of a state."""
    actions = _random_actions(world_model, len(state))
    return lambda: world_model.step(state, actions, **sampling)


def diffusers_forward(dtype: torch.dtype, num_tokens: int) -> Callable[[], Any]:
    """One pass of diffusers' Wan transformer at the same sizes over at least so many tokens, with one of text."""
    per_latent = (LATENT_SIZE // 2) ** 2
    torch.manual_seed(0)
    model = pkgutil.resolve_name("diffusers:WanTransformer3DModel")(
        num_attention_heads=4,
        attention_head_dim=64,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=1024,
        num_layers=8,
        rope_max_seq_len=64,
    )
    model = model.to(dtype).eval().requires_grad_(False)
    video = torch.randn(1, CHANNELS, -(-num_tokens // per_latent), LATENT_SIZE, LATENT_SIZE, dtype=dtype)
    text, level = torch.randn(1, 1, TEXT_DIM, dtype=dtype), torch.tensor([700])
    return lambda: model(video, level, text)


def diamond_step(num_worlds: int, dtype: torch.dtype) -> Callable[[], Any]:
    """One frame of DIAMOND-shaped worlds, reward and end included."""
    torch.manual_seed(0)
    world = DiamondWorld().eval().requires_grad_(False)
    state, action = world.start(num_worlds), torch.randint(NUM_ACTIONS, (num_worlds,))

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return world.step(state, action)

    return run


def vector_step(
    num_envs: int, observation: str = "frame", num_inference_steps: int | None = None, *, compiled: bool = False
) -> Callable[[], Any]:
    """One step of native vector environments of the bundled world, reward included; its own steps if None are given."""
    env: Any = gymnasium.make_vec(
        ENVIRONMENT,
        num_envs,
        "vector_entry_point",
        observation=observation,
        num_inference_steps=num_inference_steps,
        max_episode_steps=10**9,
        device="cpu",
    )
    if compiled:  # of its own: environments share the world model of one name
        env.world_model = copy.deepcopy(env.world_model)
        env.world_model.compile()
    return stepping(env)


def stepping(env: Any) -> Callable[[], Any]:
    """One step of an environment under a random action."""
    env.action_space.seed(0)
    env.reset(seed=0)
    return lambda: env.step(env.action_space.sample())
