"""From a validated model directory to a running ``vllm serve``: `plan_launch` decides, `launch` becomes it."""
