"""One start, eight futures in one batch: the state is a value, so branching is indexing."""

import torch

from astra_env.envs.start_states import StartStates
from astra_env.models import WorldModel
from astra_env.models.checkpoint import checkpoint_folder

world_model = WorldModel.from_pretrained("astra-tiny")
starts = StartStates.load(checkpoint_folder("astra-tiny") / "domains" / "robot")
frames, actions = torch.from_numpy(starts.frames[:1]), torch.from_numpy(starts.actions[:1])
state = world_model.init_state(frames, "end_effector", actions=actions).repeat(8)

generator = torch.Generator().manual_seed(0)
modality = world_model.modalities["end_effector"]
low, high = torch.tensor(modality.low), torch.tensor(modality.high)
futures = low + (high - low) * torch.rand(8, 5, 7, generator=generator)  # (B, horizon, A)
with torch.no_grad():
    state = world_model.imagine(state, futures)
    state, chunk = world_model.decode(state)
spread = chunk[:, -1].float().std(0).mean()
print(f"after 5 actions the 8 futures differ by {spread:.1f} grey levels a pixel; frames {tuple(chunk.shape)}")
state[3].save("future_3.safetensors")
