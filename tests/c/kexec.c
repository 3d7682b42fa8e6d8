/*
 * Boots another kernel from the one that runs, which tells no device that it ends:
 *
 *     kexec KERNEL INITRAMFS COMMAND-LINE
 *
 * See kexec_file_load(2).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/reboot.h>

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: kexec KERNEL INITRAMFS COMMAND-LINE\n");
        return 2;
    }
    int kernel = open(argv[1], O_RDONLY | O_CLOEXEC);
    int initramfs = open(argv[2], O_RDONLY | O_CLOEXEC);
    if (kernel < 0 || initramfs < 0) {
        perror("open");
        return 1;
    }
    if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(argv[3]) + 1, argv[3], 0UL) != 0) {
        perror("kexec_file_load");
        return 1;
    }
    reboot(LINUX_REBOOT_CMD_KEXEC);
    perror("reboot");
    return 1;
}
