"""``xlnet-pipeline build``: build the container image that the steps run in."""

import argparse
import os

from xlnet_pipeline.commands.parser import Subparsers, command
from xlnet_pipeline.commands.run import home_option, local

KIND_REGISTRY_PORT = "5001"  # infra/kind/settings.sh


def add(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser = command(
        subparsers,
        "build",
        build,
        "build the image that steps run in",
        "build",
        "build --accelerator gpu --push --registry us-docker.pkg.dev/my-project/xlnet",
        "build --load-kind xlnet",
        details="This needs a checkout, and Docker or Podman. The tag is a fingerprint of everything in the image, so\n"
        "an unchanged image is not built again. The last line is the digest to give to compile.",
    )
    parser.add_argument(
        "--accelerator",
        default="cpu",
        metavar="NAME",
        help="cpu (the default), gpu, tpu (torch_xla) or tpu-native; or serve, which serves a model over HTTP",
    )
    parser.add_argument(
        "--registry", metavar="HOST/PATH", help="where the image belongs (default: $CONTAINER_IMAGE_REGISTRY)"
    )
    parser.add_argument("--push", action="store_true", help="push it to that registry")
    parser.add_argument(
        "--load-kind", metavar="NAME", help="push it to the registry of the kind cluster that make kind-up made"
    )
    parser.add_argument("--cloud-build", action="store_true", help="build and push it on Google Cloud Build")
    parser.add_argument("--engine", metavar="NAME", help="docker or podman (default: the first that is installed)")
    parser.add_argument("--base-image", metavar="IMAGE", help="a Debian with Python 3.11 (default: the Dockerfile's)")
    parser.add_argument(
        "--build-arg",
        dest="arguments",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a build argument, as in docker build",
    )
    parser.add_argument("--network", metavar="NAME", help="the build's network, as in docker build")


def build(options: argparse.Namespace) -> None:
    """Build the image and print its name."""
    from xlnet_pipeline.images import build as images

    home = local(options).home
    wanted = images.Build(
        options.accelerator,
        _registry(options),
        options.base_image or "",
        tuple(options.arguments),
        options.network or "",
    )
    if options.cloud_build:
        image = images.build_in_cloud(wanted, home, print)
    else:
        program = images.engine(options.engine or "")
        push = options.push or bool(options.load_kind)
        image = images.build(wanted, home, program=program, push=push, say=print)
    print(f"image {image.tag}")
    print(f"digest {image.digest}")
    if image.accelerator == "serve":
        print(f"next: docker run -p 8080:8080 -v MODEL:/model:ro {image.tag} python -m xlnet serve /model")
    elif options.load_kind:
        print(f"next: xlnet-pipeline run --target kfp --wait --image {image.reference}")
    elif image.pushed:
        print(f"next: xlnet-pipeline compile -o pipeline.yaml --image {image.reference}")
    elif image.accelerator == "cpu":
        print(f"next: xlnet-pipeline {home_option(options.home)}".rstrip() + " run --target docker")


def _registry(options: argparse.Namespace) -> str:
    if options.load_kind:
        port = os.environ.get("REGISTRY_PORT", KIND_REGISTRY_PORT)
        return f"localhost:{port}"
    return options.registry or (os.environ.get("CONTAINER_IMAGE_REGISTRY", "") if _leaves(options) else "")


def _leaves(options: argparse.Namespace) -> bool:
    """Whether the image leaves this machine. An image that stays here needs no registry in its name."""
    return bool(options.push or options.cloud_build)
