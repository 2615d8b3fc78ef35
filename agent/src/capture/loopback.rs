//! Gives the loopback interface an IPv6 address, by the kernel's own interface (rtnetlink): in a pod there is no `ip`.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// linux/rtnetlink.h, linux/netlink.h
const RTM_NEWADDR: u16 = 20;
const NLMSG_ERROR: u16 = 2;
/// REQUEST, ACK, REPLACE, CREATE: no error if it is there already.
const FLAGS: u16 = 0x1 | 0x4 | 0x100 | 0x400;
/// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET6: u8 = 10;
const SCOPE_HOST: u8 = 254;
const PREFIX: u8 = 128;

/// Makes `address` one of `lo`'s.
///
/// # Errors
/// Without NET_ADMIN, or where there is no IPv6.
pub(super) fn add(address: Ipv6Addr) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex("lo")?;
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(fd.as_raw_fd(), &request(address, index), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    match error(answer.get(..length).unwrap_or_default()) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// nlmsghdr, ifaddrmsg, and the address as two attributes.
fn request(address: Ipv6Addr, index: u32) -> Vec<u8> {
    let mut body = vec![AF_INET6, PREFIX, 0, SCOPE_HOST];
    body.extend(index.to_ne_bytes());
    for kind in [IFA_LOCAL, IFA_ADDRESS] {
        body.extend(20_u16.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(address.octets());
    }
    let length = 16 + u32::try_from(body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(RTM_NEWADDR.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    message
}

/// The kernel's verdict: 0, or a negative error number.
fn error(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(())?;
    Some(i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?))
}
