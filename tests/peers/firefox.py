"""Firefox without a window, driven over Marionette, with a profile of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from .process import until

PROGRAM = shutil.which("firefox-esr") or shutil.which("firefox")

#: No page of the browser's own may open, ask or report anything.
PREFERENCES: dict[str, object] = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.security.https_only_mode": False,
    "extensions.update.enabled": False,
    "marionette.port": 0,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "network.trr.mode": 5,
    "services.settings.server": "",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}


class Firefox:
    """One browser with one window."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.number = 0

    async def receive(self) -> Any:
        length = await self.reader.readuntil(b":")
        return json.loads(await self.reader.readexactly(int(length[:-1])))

    async def command(self, name: str, **parameters: object) -> Any:
        """One command of Marionette's, and its answer."""
        self.number += 1
        message = json.dumps([0, self.number, name, parameters]).encode()
        self.writer.write(b"%d:%s" % (len(message), message))
        _, _, error, result = await self.receive()
        assert error is None, f"{name}: {error['error']}: {error['message']}"
        return result

    async def run(self, script: str, *arguments: object, privileged: bool = False) -> Any:
        """What a piece of JavaScript returns."""
        await self.command("Marionette:SetContext", value="chrome" if privileged else "content")
        try:
            return (await self.command("WebDriver:ExecuteScript", script=script, args=list(arguments)))["value"]
        finally:
            await self.command("Marionette:SetContext", value="content")

    async def trust(self, authority: Path) -> None:
        """Takes a certification authority for good."""
        lines = [line for line in authority.read_text().splitlines() if not line.startswith("-----")]
        await self.run(
            """
            Cc["@mozilla.org/security/x509certdb;1"].getService(Ci.nsIX509CertDB).addCertFromBase64(arguments[0], "CT,,");
            """,
            "".join(lines),
            privileged=True,
        )

    async def install(self, manifest: dict[str, object], background: str) -> None:
        """Installs an extension until the browser ends."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            files.writestr("manifest.json", json.dumps(manifest))
            files.writestr("background.js", background)
        packed = base64.b64encode(archive.getvalue()).decode()
        await self.command("Addon:Install", addon=packed, temporary=True, allowPrivateBrowsing=True)

    async def open(self, url: str) -> None:
        """Loads a page."""
        await self.command("WebDriver:Navigate", url=url)


@asynccontextmanager
async def firefox(folder: Path, **preferences: object) -> AsyncIterator[Firefox]:
    """A running browser; `__` in the name of a preference stands for a dot."""
    assert PROGRAM is not None
    wanted = PREFERENCES | {name.replace("__", "."): value for name, value in preferences.items()}
    profile = folder / "profile"
    profile.mkdir()
    (profile / "user.js").write_text(
        "".join(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in wanted.items())
    )
    with (folder / "firefox.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "--headless", "--no-remote", "--marionette", "--remote-allow-system-access", "--profile", profile,
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
            env={**os.environ, "HOME": str(folder), "MOZ_CRASHREPORTER_DISABLE": "1"},
        )  # fmt: skip
    writer = None
    try:
        active = profile / "MarionetteActivePort"
        said = (folder / "firefox.log").read_text
        assert await until(active.exists, 60, 0.1), said()
        assert await until(lambda: active.read_text().strip().isdecimal())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(active.read_text()))
        browser = Firefox(reader, writer)
        assert (await browser.receive())["marionetteProtocol"] == 3
        await browser.command("WebDriver:NewSession", capabilities={"alwaysMatch": {"pageLoadStrategy": "normal"}})
        yield browser
        await browser.command("Marionette:Quit", flags=["eForceQuit"])
        await asyncio.wait_for(process.wait(), 20)
    finally:
        if writer is not None:
            writer.close()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
