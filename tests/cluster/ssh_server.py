"""An SSH server on loopback that runs what it is asked to: ``python -m tests.cluster.ssh_server FOLDER``.

Makes its host's key and a user's in the folder, and writes ``known_hosts`` and,
when it listens, ``port``.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncssh


async def run(process: Any) -> None:
    """Run a command until it ends or its connection does."""
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_shell(process.command, stdin=none, stdout=pipe, stderr=pipe)
    await process.redirect(stdout=child.stdout, stderr=child.stderr)
    ended = asyncio.ensure_future(child.wait())
    closed = asyncio.ensure_future(process.channel.wait_closed())
    await asyncio.wait((ended, closed), return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        process.exit(ended.result())


async def serve(folder: Path) -> None:
    """Listen until the process is killed."""
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(folder / "user")
    user.write_public_key(folder / "user.pub")
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host],
        authorized_client_keys=str(folder / "user.pub"),
        process_factory=run,
    )
    (folder / "known_hosts").write_text("[127.0.0.1]:* " + host.export_public_key().decode())
    (folder / "port.new").write_text(str(server.get_port()))
    (folder / "port.new").rename(folder / "port")
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
