# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs that carry files, and shells."""
import os

from cell import HOST
from children import tool
from programs import program
from programs.web import content


@program("OpenSSH", "openssh-server", "C; poll; forks and executes itself for each connection, seccomp",
         "ssh and scp, 3 MiB each way", tcp=("call",),
         remark="sshd inherits the socket over its own exec")
def openssh(cell):
    port = cell.port()
    for name in ("host", "user"):
        cell.prepare(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", cell.tmp + "/" + name])
    blob = cell.blob("big", 3 << 20)
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # its chroot, which it insists on
    conf = cell.file("conf", "Port %d\nListenAddress %s\nHostKey %s/host\nPidFile none\nUsePAM no\n"
                     "AuthorizedKeysFile %s/user.pub\nStrictModes no\nPermitRootLogin yes\n"
                     "PrintMotd no\nSubsystem sftp internal-sftp\nLogLevel ERROR\n"
                     % (port, HOST, cell.tmp, cell.tmp))
    cell.server([tool("sshd"), "-D", "-e", "-f", conf], port)
    how = ["-F", "none", "-i", cell.tmp + "/user", "-o", "StrictHostKeyChecking=no", "-o",
           "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
    ssh = ["ssh"] + how + ["-p", port, "root@" + HOST]
    cell.client(ssh + ["echo $0 $((6 * 7))"])
    cell.client(ssh + ["cat " + blob], digest=True)
    cell.client(ssh + ["sha256sum"], stdin=blob)
    cell.client(["scp", "-q"] + how + ["-P", port, blob, "root@%s:%s/copy" % (HOST, cell.tmp)])
    cell.client(["scp", "-q"] + how + ["-P", port, "root@%s:%s/copy" % (HOST, cell.tmp),
                                       cell.tmp + "/again"])
    cell.output.append(cell.prepare(["sha256sum", "copy", "again"]))


@program("vsftpd", "vsftpd", "C; processes of several users for each connection, capabilities, seccomp",
         "lftp: 1 MiB each way, lists", tcp=("passed", "no-memory", "call", "starting"),
         remark="the socket is the standard input of several processes; data connections are passed, "
                "under a limit on memory")
def vsftpd(cell):
    port, data, root = cell.port(), cell.port(), content(cell)
    os.makedirs(root + "/in")
    os.chmod(root + "/in", 0o777)
    cell.folder("empty")
    conf = cell.file("conf", """\
listen=YES
listen_ipv6=NO
background=NO
listen_address=%s
listen_port=%d
anonymous_enable=YES
local_enable=NO
no_anon_password=YES
anon_root=%s
anon_upload_enable=YES
write_enable=YES
anon_umask=022
pasv_min_port=%d
pasv_max_port=%d
nopriv_user=nobody
secure_chroot_dir=%s/empty
xferlog_enable=NO
""" % (HOST, port, root, data, data, cell.tmp))
    cell.server(["vsftpd", conf], port)
    lftp = ["lftp", "-c", "set net:max-retries 1; set net:timeout 10; set cmd:fail-exit yes;"
            "set ftp:use-mdtm no; set net:limit-rate 1500000; open -p %d %s; " % (port, HOST)]
    cell.client(lftp[:2] + [lftp[2] + "cat file"], digest=True)
    cell.client(lftp[:2] + [lftp[2] + "cd in; put %s/file; cat file" % root], digest=True)
    cell.client(lftp[:2] + [lftp[2] + "nlist; cat small; sleep 1; cat small"])


@program("rsync daemon", "rsync", "C; select; a process for each connection, forked",
         "rsync: a tree of 200 files and 3 MiB, each way", tcp=("forked",),
         remark="both ends fork while they use the connection")
def rsync(cell):
    port = cell.port()
    cell.blob("there/big", 3 << 20)
    for i in range(200):
        cell.file("there/%d/%d" % (i % 10, i), "%d\n" % i * i)
    cell.folder("back")
    conf = cell.file("conf", "use chroot = no\nuid = 0\ngid = 0\nread only = no\n"
                     "[there]\npath = %s/there\n[back]\npath = %s/back\n" % (cell.tmp, cell.tmp))
    cell.server(["rsync", "--daemon", "--no-detach", "--config=" + conf, "--address=" + HOST,
                 "--port=%d" % port], port)
    at = "rsync://%s:%d/" % (HOST, port)
    folders = r"^[.c]d.*\n"  # with their times, which may be those of the same second
    cell.client(["rsync", "-ai", at + "there/", cell.tmp + "/here/"], drop=folders)
    cell.client(["rsync", "-ai", "--bwlimit=8m", cell.tmp + "/here/", at + "back/"], drop=folders)
    cell.client(["rsync", "-aic", "--delete", at + "back/", cell.tmp + "/here/"], drop=folders)
    cell.prepare(["diff", "-r", cell.tmp + "/there", cell.tmp + "/back"])


@program("git daemon", "git", "C; poll; forks and executes itself for each connection",
         "git clone, 3 MiB; git ls-remote", tcp=("call",),
         remark="the service gets the socket as its standard input and output")
def git(cell):
    port, repo = cell.port(), cell.tmp + "/repo"
    fixed = ["env", "GIT_AUTHOR_DATE=1700000000 +0000", "GIT_COMMITTER_DATE=1700000000 +0000",
             "GIT_CONFIG_GLOBAL=/dev/null", "git", "-c", "user.name=n", "-c", "user.email=e", "-C", repo]
    cell.blob("repo/big", 3 << 20)
    for args in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        cell.prepare(fixed + args)
    cell.server(["git", "-c", "safe.directory=*", "daemon", "--reuseaddr", "--export-all",
                 "--base-path=" + cell.tmp, "--listen=" + HOST, "--port=%d" % port], port)
    url = "git://%s:%d/repo" % (HOST, port)
    cell.client(["git", "ls-remote", url])
    cell.client(["git", "clone", "-q", url, cell.tmp + "/clone"])
    cell.output.append(cell.prepare(["git", "-C", cell.tmp + "/clone", "fsck", "--full"]))
    cell.output.append(cell.prepare(["git", "-C", cell.tmp + "/clone", "rev-parse", "HEAD"]))


@program("nbdkit", "nbdkit", "C; blocking; several threads for each connection",
         "nbdcopy, 6 MiB each way, on 4 connections")
def nbd(cell):
    port = cell.port()
    disk, new = cell.blob("disk", 6 << 20), cell.blob("new", (6 << 20) - 4096)
    os.truncate(new, 6 << 20)
    cell.server(["nbdkit", "-f", "-i", HOST, "-p", port, "file", disk], port)
    url = "nbd://%s:%d/" % (HOST, port)
    cell.client(["nbdcopy", url, cell.tmp + "/copy"])
    cell.prepare(["cmp", disk, cell.tmp + "/copy"])
    cell.client(["nbdcopy", new, url])
    cell.prepare(["cmp", disk, new])


@program("Dovecot", "dovecot-imapd", "C; its own loop on epoll; login processes pass the socket on",
         "curl: IMAP, a mail of 2 MB", tcp=("passed", "starting"),
         remark="the login process passes the socket to the one for this user")
def dovecot(cell):
    port = cell.port()
    cell.folder("mail")
    os.chmod(cell.tmp + "/mail", 0o777)
    conf = cell.file("conf", """\
protocols = imap
listen = %(host)s
base_dir = %(tmp)s/run
log_path = /dev/stderr
ssl = no
disable_plaintext_auth = no
mail_location = maildir:%(tmp)s/mail/box
first_valid_uid = 1
passdb {
  driver = static
  args = nopassword=y
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=%(tmp)s/mail
}
service imap-login {
  inet_listener imap {
    port = %(port)d
  }
  inet_listener imaps {
    port = 0
  }
}
""" % {"host": HOST, "tmp": cell.tmp, "port": port})
    cell.file("message", "From: a@b\nSubject: c\n\n" + "0123456789abcde\r\n" * 150000)
    cell.server(["dovecot", "-F", "-c", conf], port, quiet=True)
    curl = ["curl", "-sS", "-u", "user:pass"]
    url = "imap://%s:%d/INBOX" % (HOST, port)
    cell.client(curl + ["-T", cell.tmp + "/message", url])
    cell.client(curl + [url + ";MAILINDEX=1"], digest=True)
