#!/usr/bin/env python3
"""Write an OCI image tarball with no registry, no Docker and no network.

One layer, reproducible (sorted names, mtime 0, uid/gid 0), uncompressed.
The result is what `ctr -n k8s.io images import FILE` reads.

  scripts/oci.py -o pause.tar -n localhost/pause:dev --add build/pause=/pause \
             --entrypoint /pause
  scripts/oci.py -o envoy.tar -n localhost/envoy:dev --elf /path/envoy=/usr/bin/envoy \
             --text '/etc/passwd=root:x:0:0:root:/:/bin/sh' --dir /tmp:1777

--add SRC=DST    a file, or a folder with all it holds (mode taken from disk)
--elf SRC[=DST]  a dynamically linked program, with every library `ldd` names
                 (put where the loader of THIS machine finds them) and the loader
--link DST=TO    a symbolic link
--text DST=TEXT  a small file
--dir DST[:MODE] an empty folder
"""
import argparse, hashlib, io, json, os, re, subprocess, tarfile


class Layer:
    def __init__(self):
        self.e = {}  # path in the image, no leading slash -> (TarInfo, bytes or source path)

    def _put(self, dst, kind, mode, data=None, link=""):
        dst = dst.strip("/")
        parent = os.path.dirname(dst)
        if parent and parent not in self.e:
            self._put(parent, tarfile.DIRTYPE, 0o755)
        if kind == tarfile.DIRTYPE and dst in self.e:
            self.e[dst][0].mode = mode
            return
        t = tarfile.TarInfo(dst)
        t.type, t.mode, t.linkname, t.mtime = kind, mode, link, 0
        if kind == tarfile.REGTYPE:
            t.size = len(data) if isinstance(data, bytes) else os.path.getsize(data)
        self.e[dst] = (t, data)

    def dir(self, dst, mode=0o755): self._put(dst, tarfile.DIRTYPE, mode)
    def link(self, dst, to): self._put(dst, tarfile.SYMTYPE, 0o777, link=to)
    def text(self, dst, s, mode=0o644): self._put(dst, tarfile.REGTYPE, mode, s.encode())

    def add(self, src, dst):
        if os.path.isdir(src) and not os.path.islink(src):
            self.dir(dst, os.stat(src).st_mode & 0o7777)
            for n in sorted(os.listdir(src)):
                self.add(os.path.join(src, n), dst.rstrip("/") + "/" + n)
        elif os.path.islink(src) and not os.path.isfile(src):
            self.link(dst, os.readlink(src))
        else:  # a link to a file becomes the file
            src = os.path.realpath(src)
            self._put(dst, tarfile.REGTYPE, os.stat(src).st_mode & 0o7777, src)

    def elf(self, src, dst=None):
        self.add(src, dst or src)
        out = subprocess.run(["ldd", src], capture_output=True, text=True).stdout
        for m in re.finditer(r"(?:=>\s+)?(/\S+) \(0x", out):
            if m[1].strip("/") not in self.e:
                self.add(m[1], m[1])

    def write(self, path):
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tf:
            for p in sorted(self.e):
                t, d = self.e[p]
                if t.type != tarfile.REGTYPE: tf.addfile(t)
                elif isinstance(d, bytes): tf.addfile(t, io.BytesIO(d))
                else:
                    with open(d, "rb") as f: tf.addfile(t, f)


def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while b := f.read(1 << 20): h.update(b)
    return h.hexdigest()


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("-o", "--out", required=True)
    a.add_argument("-n", "--name", required=True)
    for f in ("add", "elf", "link", "text", "dir", "env"): a.add_argument("--" + f, action="append", default=[])
    a.add_argument("--entrypoint", nargs="+"); a.add_argument("--cmd", nargs="+")
    a.add_argument("--user", default=""); a.add_argument("--workdir", default="/")
    o = a.parse_args()
    L = Layer()
    for s in o.dir:
        d, _, m = s.partition(":"); L.dir(d, int(m or "755", 8))
    for s in o.add: L.add(*s.split("=", 1))
    for s in o.elf: L.elf(*s.split("=", 1))
    for s in o.link: L.link(*s.split("=", 1))
    for s in o.text:
        d, t = s.split("=", 1); L.text(d, t.replace("\\n", "\n") + "\n")
    tmp = o.out + ".layer"
    L.write(tmp)
    try:
        ld = sha(tmp)
        cfg = {"architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine], "os": "linux",
               "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] + o.env,
                          "WorkingDir": o.workdir, "User": o.user},
               "rootfs": {"type": "layers", "diff_ids": ["sha256:" + ld]}, "history": [{"created_by": "scripts/oci.py"}]}
        if o.entrypoint: cfg["config"]["Entrypoint"] = o.entrypoint
        if o.cmd: cfg["config"]["Cmd"] = o.cmd
        cb = json.dumps(cfg, sort_keys=True).encode(); cd = hashlib.sha256(cb).hexdigest()
        mt = "application/vnd.oci.image."
        mb = json.dumps({"schemaVersion": 2, "mediaType": mt + "manifest.v1+json",
                         "config": {"mediaType": mt + "config.v1+json", "digest": "sha256:" + cd, "size": len(cb)},
                         "layers": [{"mediaType": mt + "layer.v1.tar", "digest": "sha256:" + ld,
                                     "size": os.path.getsize(tmp)}]}, sort_keys=True).encode()
        md = hashlib.sha256(mb).hexdigest()
        ib = json.dumps({"schemaVersion": 2, "manifests": [{
            "mediaType": mt + "manifest.v1+json", "digest": "sha256:" + md, "size": len(mb),
            "annotations": {"io.containerd.image.name": o.name,
                            "org.opencontainers.image.ref.name": o.name.rsplit(":", 1)[-1]}}]}).encode()
        with tarfile.open(o.out, "w") as tf:
            def blob(n, b):
                t = tarfile.TarInfo(n); t.size = len(b); tf.addfile(t, io.BytesIO(b))
            blob("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            blob("index.json", ib)
            blob("blobs/sha256/" + md, mb)
            blob("blobs/sha256/" + cd, cb)
            t = tarfile.TarInfo("blobs/sha256/" + ld); t.size = os.path.getsize(tmp)
            with open(tmp, "rb") as f: tf.addfile(t, f)
    finally:
        os.unlink(tmp)
    print(f"{o.name} sha256:{md[:12]} {os.path.getsize(o.out)/1e6:.1f} MB")


if __name__ == "__main__":
    main()
