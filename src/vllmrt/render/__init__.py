"""Manifests for what starts vllmrt unattended: Kubernetes, Flox, systemd, podman's quadlet."""
